"""Short texts in many languages and scripts, written for the tests: two paragraphs each, on different subjects."""

PROSE = dict(
    en="""The old bridge was closed in March, and nobody in the village was surprised. For years the carpenter had said that the beams were rotten, but the council had other plans with the money. Now the children have to walk around by the mill, which takes them half an hour.
In the evening people met at the inn and talked about it. Some wanted to build a new bridge of stone, others thought that a ferry would be enough. At last the teacher asked who would pay for all of that, and it became quiet in the room.""",
    de="""Im Frühjahr wurde die alte Bibliothek am Marktplatz wieder geöffnet, nachdem sie fast drei Jahre lang leer gestanden hatte. Die Handwerker hatten das Dach erneuert, die Regale abgeschliffen und neue Lampen aufgehängt. Am ersten Tag kamen so viele Leute, dass die Stühle nicht reichten.
Eine ältere Dame erzählte, dass sie hier als Kind ihr erstes Buch ausgeliehen habe. Sie wusste noch genau, wo es stand und wie der Einband roch. Der neue Leiter hörte ihr zu, ging in den Keller und brachte ihr nach einer Weile genau dieses Buch. Da musste sie lachen und weinte zugleich.""",
    fr="""Le marché du samedi commence avant le lever du soleil, quand les maraîchers arrivent avec leurs camions chargés de salades et de poireaux. On discute, on boit un café debout, et l'on se plaint du temps : il pleut trop, ou bien il ne pleut pas assez. Vers huit heures, les premiers clients descendent de la ville haute.
« Vous n'avez plus de fraises ? » demande une jeune femme. « Demain, peut-être », répond le marchand, qui sait bien que ce sera trop tard. Elle choisit donc des cerises, les goûte, et s'en va contente. À midi, tout est rangé, et la place redevient vide jusqu'à la semaine prochaine.""",
    es="""Mi abuelo plantó el olivo el mismo año en que terminó la guerra, y nadie pensaba entonces que fuera a crecer en una tierra tan seca. Cada tarde le llevaba un cubo de agua desde la fuente, aunque le dolía la espalda y los vecinos se reían de él. ¿Para qué tanto trabajo por un árbol?
Hoy el olivo da sombra a toda la casa. Mis hijos juegan debajo, y en noviembre recogemos las aceitunas entre todos. Cuando alguien pregunta cuántos años tiene, contamos la historia del cubo y de la fuente, y cada vez la fuente queda un poco más lejos.""",
    pt="""O barco saiu do porto antes do amanhecer, com cinco homens a bordo e pouco gelo no porão. O mestre conhecia aquele mar desde menino e não precisava de mapas para encontrar os cardumes. Mesmo assim, naquela manhã o nevoeiro era tão espesso que ninguém via a proa.
Ficaram parados durante duas horas, a ouvir os sinos das boias e o motor dos outros. Quando o sol finalmente rompeu, descobriram que estavam a poucos metros da praia, quase no mesmo lugar de onde tinham partido. Riram-se todos, menos o mestre.""",
    it="""La nonna teneva le ricette in un quaderno con la copertina rossa, ma non lo apriva mai davanti a noi. Diceva che le mani ricordano meglio della carta, e che chi pesa la farina non ha mai avuto fame. Noi guardavamo e cercavamo di capire quanto fosse un pugno e quanto fosse un pizzico.
Quando è morta abbiamo trovato il quaderno in fondo al cassetto. Le pagine erano quasi tutte bianche: c'erano solo i nomi dei piatti e, accanto, i nomi delle persone a cui piacevano. Da allora lo completiamo noi, una domenica alla volta.""",
    pl="""Pociąg stanął w szczerym polu i przez godzinę nikt nie wiedział, dlaczego. Za oknem leżał śnieg, a na horyzoncie widać było tylko kilka drzew i komin jakiejś starej cegielni. Konduktor chodził po wagonach i mówił wszystkim to samo, że trzeba czekać.
W przedziale zrobiło się w końcu wesoło. Ktoś wyjął termos z herbatą, ktoś inny kanapki, a chłopiec z ostatniej ławki zaczął grać na harmonijce. Kiedy pociąg wreszcie ruszył, było nam prawie żal, że podróż się kończy.""",
    nl="""De dijk achter ons huis is in de loop van de jaren steeds hoger geworden, zodat we de rivier niet meer kunnen zien. Mijn vader vond dat jammer, maar hij begreep ook wel dat het water niet wacht. Toen ik klein was, stond de kelder elke winter onder.
Nu lopen er schapen over het gras en fietsen er mensen langs die niet weten wat hier vroeger was. Soms blijft er iemand staan en vraagt waarom de huizen zo laag liggen. Dan wijs ik naar de streep op de muur, en meestal is dat genoeg.""",
    fi="""Saunan lämmittäminen kestää meillä lähes kolme tuntia, koska kiuas on vanha ja puut ovat usein kosteita. Isä väittää, että hidas lämpö on parempaa kuin nopea, eikä kukaan enää viitsi väittää vastaan. Sillä välin haemme vettä järvestä ja pesemme laiturin.
Illalla istumme lauteilla hiljaa ja kuuntelemme, kuinka tuuli liikuttaa koivuja. Joku kysyy aina, pitäisikö hankkia sähkökiuas. Sitten menemme uimaan, ja kysymys unohtuu seuraavaan lauantaihin asti.""",
    hu="""A falu végén állt egy ház, amelyben senki sem lakott, mióta az órásmester elköltözött. A gyerekek azt mondták, hogy éjszaka még mindig hallani az órák ketyegését, de a felnőttek csak legyintettek. Egyszer aztán a tanító megelégelte a dolgot, és bement a kulccsal.
Az ablakok be voltak szögezve, a padlón por és régi újságok hevertek. A falon azonban valóban járt egy óra, és pontosan mutatta az időt. Hogy ki húzta fel, azt a mai napig nem tudja senki.""",
    tr="""Dedemin dükkânı çarşının en dar sokağındaydı ve kapısının üstünde küçük bir çan asılıydı. Sabahları önce sobayı yakar, sonra çayı demler, ondan sonra da kepenkleri açardı. Müşteri gelmese bile üzülmezdi, çünkü ona göre bir dükkân satmak için değil, konuşmak için vardı.
Ben okuldan çıkınca doğru oraya giderdim ve tezgâhın arkasında ders çalışırdım. Anlamadığım bir şey olursa sorardım, o da bilmese bile uzun uzun anlatırdı. Şimdi o sokakta başka bir dükkân var ama çan hâlâ yerinde duruyor.""",
    vi="""Mỗi buổi sáng bà tôi dậy từ lúc trời còn tối để nhóm bếp và nấu nồi cháo cho cả nhà. Khói bay qua cửa sổ, hòa với sương trên cánh đồng, và mùi gạo mới làm chúng tôi tỉnh giấc. Ông thì ngồi ngoài hiên, uống trà và nghe tin tức trên chiếc đài cũ.
Khi lên thành phố học, tôi nhớ nhất là những buổi sáng như thế. Ở đó cái gì cũng có, nhưng không ai có thời gian để ngồi ăn với nhau. Vì vậy mỗi lần về quê, tôi luôn thức dậy sớm hơn mọi người và ra ngồi cạnh bếp với bà.""",
    id="""Setiap hari Jumat ayah membawa kami ke pantai untuk melihat nelayan menarik jala dari laut. Kadang-kadang hasilnya banyak, tetapi sering juga hanya rumput laut dan beberapa ikan kecil yang tertangkap. Ayah selalu berkata bahwa laut tidak pernah berutang kepada siapa pun.
Setelah itu kami duduk di warung dan makan pisang goreng yang masih panas. Adik saya suka bertanya mengapa air laut asin, dan setiap kali ayah memberi jawaban yang berbeda. Sampai sekarang saya tidak tahu mana yang benar, tetapi saya masih ingat semuanya.""",
    sw="""Kijiji chetu kiko karibu na mto mkubwa ambao hufurika kila mwaka wakati wa mvua za masika. Wazee wanasema kwamba zamani maji yalikuwa yanafika hadi kwenye mlango wa shule, lakini sasa watu wamejenga ukuta wa mawe. Watoto hupenda kukaa juu ya ukuta huo na kutazama mitumbwi ikipita.
Jioni wanawake hurudi kutoka shambani wakiwa wamebeba kuni na mboga. Kila mtu hukusanyika chini ya mwembe na kusikiliza habari za siku hiyo. Ikiwa kuna mgeni, yeye ndiye anayeanza kusimulia hadithi, na hakuna anayelala mpaka amalize.""",
    ru="""Почтальон приходил к нам по вторникам и пятницам, и мы узнавали его ещё издалека по скрипу велосипеда. Письма он отдавал не сразу: сначала расспрашивал о здоровье, потом пил чай с вареньем и только после этого открывал свою сумку. Бабушка делала вид, что сердится, но без него не начинала обедать.
Однажды зимой он не приехал, и мы решили, что дорогу занесло снегом. Только через неделю кто-то рассказал, что старика отправили на пенсию, а вместо него будет ездить машина. Машина возит письма быстрее, но чай с нами больше никто не пьёт.""",
    uk="""Наш сад починався одразу за хатою і тягнувся аж до річки, де росли старі верби. Дідусь знав кожне дерево на ім'я і щоосені записував у зошит, скільки яблук воно дало. Якщо якась яблуня не родила, він з нею розмовляв, і наступного року вона зазвичай виправлялася.
Коли дідуся не стало, зошит узяла моя сестра. Вона живе в місті, але кожного вересня приїжджає, рахує яблука і пише все так само, як він. Ми сміємося з неї, проте нікому не дозволяємо зрубати жодного дерева.""",
    bg="""Пътят към хижата минава през гора, в която и през лятото е тъмно и хладно. Първите два часа се върви лесно, но след това започват камъните и човек трябва да внимава къде стъпва. Водачът ни не бързаше и спираше на всеки завой, за да ни покаже нещо.
Горе ни посрещнаха с чорба от леща и топъл хляб. Вечерта небето беше толкова ясно, че никой не искаше да си ляга. Хижарят каза, че идват хора само заради звездите, а ние му повярвахме веднага.""",
    el="""Το καφενείο του χωριού άνοιγε πριν ξημερώσει, για να προλάβουν οι ψαράδες να πιουν κάτι ζεστό. Ο ιδιοκτήτης δεν ρωτούσε ποτέ τι θέλει ο καθένας, γιατί το ήξερε από παλιά και δεν του άρεσαν οι αλλαγές. Αν κάποιος ζητούσε κάτι άλλο, τον κοιτούσε με απορία.
Το καλοκαίρι έρχονταν και οι ξένοι, που ήθελαν πάγο στον καφέ και μουσική. Τότε εκείνος έβγαζε δύο τραπέζια στην αυλή και τους άφηνε να κάνουν ό,τι θέλουν. Μέσα όμως έμενε πάντα ησυχία, και μόνο το ρολόι ακουγόταν.""",
    he="""סבתא שלי גרה בקומה הרביעית בבית ישן בלי מעלית, ובכל זאת היא יורדת לשוק כמעט בכל יום. היא אומרת שהמדרגות שומרות עליה צעירה, ושמי שלא יורד לשוק לא יודע מה קורה בעולם. בדרך היא עוצרת אצל כל מוכר ושואלת על הילדים שלו.
כשהיא חוזרת הביתה כולם כבר מחכים לארוחת הצהריים. היא מניחה את הסלים על השולחן, מספרת את כל החדשות, ורק אחר כך מתחילה לבשל. אף אחד מאיתנו לא מעז להתלונן על השעה, כי האוכל תמיד טעים יותר אחרי סיפור טוב.""",
    ar="""كان جدي يملك دكانًا صغيرًا لبيع الكتب القديمة في آخر الشارع، وكان يعرف مكان كل كتاب دون أن ينظر إلى الرفوف. يأتي الطلاب إليه قبل الامتحانات ويسألونه عن كتب لم يعد أحد يطبعها. وكان يعيرهم ما يريدون بلا مقابل، على أن يعيدوه قبل نهاية العام.
وفي الليل، بعد أن يغلق الباب، كان يجلس تحت المصباح ويقرأ حتى يغلبه النوم. هل كان يبيع شيئًا؟ لا أظن ذلك. لكن الناس كانوا يحبون المكان، ولما مات وجدوا في الدفتر أسماء مئات من الذين لم ينسوا أن يعيدوا الكتب إليه.""",
    fa="""خانه‌ی پدربزرگ در کوچه‌ای بود که ماشین از آن رد نمی‌شد و همیشه بوی نان تازه می‌داد. هر روز عصر همسایه‌ها صندلی‌های خود را بیرون می‌آوردند و تا تاریک شدن هوا با هم حرف می‌زدند. ما بچه‌ها در میان آن‌ها بازی می‌کردیم و کسی از سر و صدای ما خسته نمی‌شد.
حالا آن کوچه را خراب کرده‌اند و به جای آن خیابانی پهن ساخته‌اند. وقتی از آنجا می‌گذرم، هنوز می‌توانم بگویم که در خانه‌ی ما کجا بود. درخت توت را نبریده‌اند و هر سال در بهار، مردم زیر سایه‌ی آن می‌ایستند.""",
    ur="""میرے نانا کے گھر میں ایک بڑا صحن تھا جس کے بیچ میں نیم کا درخت کھڑا تھا۔ گرمیوں کی دوپہر میں ہم سب اس کے نیچے چارپائیاں بچھا کر لیٹ جاتے تھے اور نانی ہمیں پرانے زمانے کی کہانیاں سناتی تھیں۔ جب تک ہوا چلتی رہتی تھی کسی کو نیند نہیں آتی تھی۔
پھر ہم شہر چلے گئے اور وہ گھر بک گیا۔ پچھلے سال میں وہاں سے گزرا تو دیکھا کہ نئے مالک نے درخت کو نہیں کاٹا۔ اس نے مجھے اندر بلایا، ٹھنڈا پانی پلایا اور کہا کہ جب دل چاہے آ جانا، یہ درخت تو تمہارا بھی ہے۔""",
    hi="""गाँव के किनारे एक पुराना कुआँ था जिसका पानी कभी नहीं सूखता था। गर्मियों में दूर दूर से लोग वहाँ आते थे और अपनी बारी का इंतज़ार करते हुए एक दूसरे का हाल पूछते थे। मेरी दादी कहती थीं कि आधी शादियाँ तो इसी कुएँ पर तय हुई हैं।
अब हर घर में नल लग गया है और कुएँ पर कोई नहीं जाता। फिर भी पंचायत ने उसे बंद नहीं किया, बल्कि उसके चारों ओर फूल लगा दिए हैं। शाम को बूढ़े लोग वहाँ बैठते हैं और बच्चों को बताते हैं कि पहले पानी का क्या मोल था।""",
    mr="""आमच्या गावाजवळ एक लहान टेकडी आहे आणि तिच्या माथ्यावर एक जुने मंदिर आहे. दर रविवारी आम्ही सगळे मित्र तिथे जात असू आणि संध्याकाळपर्यंत खेळत असू. वरून पाहिले की सगळे गाव एखाद्या चित्रासारखे दिसते.
आता तिथपर्यंत रस्ता झाला आहे आणि पुष्कळ लोक गाडीने येतात. पण पूर्वीसारखी शांतता राहिली नाही, असे माझे आजोबा म्हणतात. तरीही पाऊस पडल्यावर तिथला वारा तसाच आहे आणि तो मला लहानपणाची आठवण करून देतो.""",
    bn="""আমাদের বাড়ির পাশে একটা বড় পুকুর ছিল, আর তার চারদিকে নারকেল গাছের সারি। বর্ষাকালে পুকুরের জল উঠে আসত উঠোন পর্যন্ত, আর আমরা কাগজের নৌকা ভাসিয়ে দিতাম। মা বারণ করতেন, কিন্তু বাবা নিজেই আমাদের জন্য নৌকা বানিয়ে দিতেন।
এখন সেই পুকুর ভরাট করে বাড়ি তোলা হয়েছে। তবু বৃষ্টি হলে জল ঠিক সেই জায়গাতেই জমে, যেন সে তার পুরনো ঠিকানা ভুলতে পারেনি। পাড়ার ছেলেরা তখন জুতো হাতে নিয়ে হাঁটে, আর আমি জানালায় দাঁড়িয়ে হাসি।""",
    ta="""எங்கள் ஊரில் ஒரு பெரிய ஆலமரம் இருக்கிறது. அதன் நிழலில் தினமும் மாலையில் பெரியவர்கள் கூடிப் பேசுவார்கள். சிறுவர்களாகிய நாங்கள் விழுதுகளைப் பிடித்து ஊஞ்சல் ஆடுவோம். மழை வந்தால் கூட யாரும் வீட்டுக்குப் போக மாட்டார்கள்.
சில ஆண்டுகளுக்கு முன்பு சாலை போடுவதற்காக அந்த மரத்தை வெட்ட வேண்டும் என்று சொன்னார்கள். ஊர் மக்கள் அனைவரும் சேர்ந்து எதிர்ப்புத் தெரிவித்தார்கள். கடைசியில் சாலை மரத்தைச் சுற்றி வளைந்து செல்கிறது. இன்று அந்த வளைவுக்கு ஆலமர வளைவு என்றே பெயர்.""",
    th="""ทุกเช้าวันเสาร์แม่จะพาฉันไปตลาดน้ำซึ่งอยู่ไม่ไกลจากบ้าน เรานั่งเรือลำเล็กไปตามคลองและแวะซื้อของจากเรือลำอื่น บางครั้งเราซื้อผลไม้ บางครั้งก็ซื้อขนมที่ยังร้อนอยู่ คนขายรู้จักแม่ทุกคนและมักจะแถมของให้เสมอ
ตอนนี้ตลาดมีนักท่องเที่ยวมากกว่าคนในหมู่บ้าน แต่ยายที่ขายก๋วยเตี๋ยวก็ยังนั่งอยู่ที่เดิม เมื่อฉันกลับบ้านครั้งล่าสุด ยายจำฉันได้ทันทีและถามว่าแม่สบายดีหรือเปล่า ฉันนั่งกินก๋วยเตี๋ยวสองชามและฟังเรื่องเก่าจนถึงเที่ยง""",
    lo="""ບ້ານຂອງຂ້ອຍຢູ່ແຄມແມ່ນໍ້າຂອງ ແລະທຸກໆເຊົ້າພໍ່ຈະອອກໄປຫາປາກ່ອນຕາເວັນຂຶ້ນ ພວກເຮົາລໍຖ້າຢູ່ຝັ່ງແລະຊ່ວຍພໍ່ດຶງເຮືອຂຶ້ນມາ ບາງມື້ໄດ້ປາຫຼາຍ ບາງມື້ກໍບໍ່ໄດ້ຫຍັງເລີຍ ແຕ່ພໍ່ບໍ່ເຄີຍຈົ່ມ
ຕອນແລງຄົນໃນບ້ານມານັ່ງລົມກັນຢູ່ໃຕ້ຕົ້ນໄມ້ໃຫຍ່ ຜູ້ເຖົ້າເລົ່ານິທານໃຫ້ເດັກນ້ອຍຟັງ ແລະແມ່ເອົາເຂົ້າໜຽວມາແບ່ງໃຫ້ທຸກຄົນກິນ ຂ້ອຍຍັງຈື່ສຽງຫົວຂອງພວກເຂົາໄດ້ຈົນເຖິງທຸກມື້ນີ້""",
    km="""ផ្ទះរបស់ជីតាខ្ញុំស្ថិតនៅជិតវាលស្រែដ៏ធំមួយ។ រៀងរាល់ព្រឹក គាត់ដើរមើលទឹកនៅក្នុងស្រែ ហើយនិយាយជាមួយអ្នកជិតខាង។ នៅរដូវវស្សា យើងទាំងអស់គ្នាជួយស្ទូងស្រូវ ហើយពេលល្ងាចយើងអង្គុយញ៉ាំបាយជុំគ្នា។
ឥឡូវនេះជីតាខ្ញុំចាស់ហើយ ប៉ុន្តែគាត់នៅតែចូលចិត្តទៅមើលស្រែ។ គាត់ប្រាប់ថា ដីនេះបានចិញ្ចឹមគ្រួសារយើងតាំងពីយូរមកហើយ។ ខ្ញុំសន្យានឹងគាត់ថា ខ្ញុំនឹងមិនលក់ដីនេះឡើយ។""",
    my="""ကျွန်တော့်အဖိုးသည် ရွာထိပ်ရှိ သစ်ပင်ကြီးအောက်တွင် နေ့တိုင်းထိုင်လေ့ရှိသည်။ သူသည် လမ်းသွားလမ်းလာများကို ရေသောက်ရန် ဖိတ်ခေါ်ပြီး သူတို့ထံမှ သတင်းများကို နားထောင်သည်။ ကျွန်တော်တို့ ကလေးများသည် သူ့အနီးတွင် ကစားကြသည်။
မိုးရာသီရောက်လျှင် လမ်းများ ရွှံ့ဗွက်ထူထပ်သဖြင့် လူများ မလာနိုင်ကြပေ။ ထိုအခါ အဖိုးသည် အိမ်ရှေ့တွင်ထိုင်ကာ မိုးသံကို နားထောင်ရင်း ရှေးဟောင်းပုံပြင်များကို ပြောပြလေ့ရှိသည်။""",
    zh="""外婆家的院子里有一棵很老的枣树，据说是她的祖父种下的。每年秋天，全村的孩子都会跑来打枣，外婆从不赶他们走，只叮嘱他们别踩了菜地。枣子晒干以后，她会装成小袋，分给远方的亲戚。
后来我去城里读书，每次打电话她都要说起那棵树。今年雨水多，结的果子不甜；明年也许会好一些。去年冬天她走了，我们回去收拾屋子，发现抽屉里还放着一袋枣，上面写着我的名字。""",
    zh_hant="""那條街上最後一間鐘錶店，在上個月悄悄關門了。老闆今年八十二歲，從十六歲當學徒開始，就一直坐在同一張桌子前面。他說現在的人看時間都用手機，壞了的手錶也捨不得花錢修理。
關門那天，許多老客人帶著鮮花和點心來看他。有人拿出一隻停了三十年的懷錶，問他還能不能修。他戴上眼鏡看了很久，然後笑著說：「明天再來拿吧，我明天還在。」""",
    ja="""祖母の台所には、いつも出汁のにおいがしていた。朝早くから鍋を火にかけ、新聞を読みながら煮えるのを待つのが祖母の習慣だった。私が起きていくと、何も言わずに小さな椀を出してくれた。
大学に入って一人で暮らすようになってから、同じ味を作ろうと何度も試した。けれども、どうしても少し違う。去年の正月に母に聞いてみると、「それは急いでいるからよ」と笑われた。たぶん、その通りなのだと思う。""",
    ko="""할머니 댁 마당에는 오래된 감나무가 한 그루 있었다. 가을이 되면 온 가족이 모여서 감을 따고, 할머니는 그것을 깎아 처마 밑에 매달아 두셨다. 우리는 감이 마르기도 전에 몰래 하나씩 빼 먹다가 혼이 나곤 했다.
지금 그 집에는 다른 사람이 산다. 그래도 고향에 갈 때마다 나는 일부러 그 골목을 지나간다. 담 너머로 감나무가 보이면 마음이 놓이고, 할머니가 부엌에서 나를 부르시는 것만 같다.""",
    ka="""ჩემი ბაბუა მთელი ცხოვრება ვენახში მუშაობდა და ყოველ შემოდგომაზე მთელ ოჯახს თავის გარშემო კრებდა. ბავშვები ყურძენს ვკრეფდით, უფროსები კი დიდ კალათებს ეზიდებოდნენ. საღამოს სუფრას ეზოში შლიდნენ და სიმღერა შუაღამემდე არ წყდებოდა.
ახლა ვენახს ჩემი ძმა უვლის. მას ახალი მანქანები აქვს, მაგრამ ამბობს, რომ ბაბუას ხელები ყველაფერს უკეთ აკეთებდნენ. როცა სტუმარი მოდის, პირველ სადღეგრძელოს ყოველთვის ბაბუას მოსაგონებლად სვამენ.""",
    hy="""Մեր գյուղի վերջում մի հին ջրաղաց կար, որտեղ ամռանը բոլոր երեխաները հավաքվում էին։ Ջրաղացպանը բարի մարդ էր և մեզ թույլ էր տալիս խաղալ գետի ափին, եթե խոստանում էինք չմոտենալ անիվին։ Երեկոյան նա մեզ հաց ու պանիր էր տալիս։
Հիմա ջրաղացը չի աշխատում, իսկ գետը շատ ավելի նեղ է դարձել։ Բայց երբ ես գյուղ եմ գնում, առաջինը այնտեղ եմ կանգնում։ Քարերի տակից դեռ լսվում է ջրի ձայնը, և ինձ թվում է, թե ոչինչ չի փոխվել։""",
    am="""አያቴ በየቀኑ ማለዳ ተነስታ ቡና ታፈላለች። ጎረቤቶች ሁሉ የቡናውን ሽታ ሲሰሙ ወደ ቤታችን ይመጣሉ። እኛ ልጆች ደግሞ ከጎናቸው ተቀምጠን የድሮ ታሪኮችን እናዳምጣለን። ማንም ሰው ሳይጠግብ አይሄድም።
አሁን እኔ በከተማ ውስጥ እኖራለሁ፤ ቡናም የማፈላበት ጊዜ የለኝም። ነገር ግን በዓል ሲመጣ ወደ አያቴ ቤት እመለሳለሁ። እሷም እንደ ድሮው ተቀምጣ ትጠብቀኛለች፤ ስለ ሥራዬም ብዙ ትጠይቀኛለች።""",
)
PROSE['ko_unspaced'] = PROSE['ko'].replace(' ', '') # as in messages and in scanned pages

# Other sorts of text: dialogue, manuals, news, recipes, official language, short lines
GENRES = dict(
    ru_dialog="""— Ты опять опоздал, — сказала она и поставила чайник на плиту. — Где ты был всё это время?
— Ходил на реку, — ответил он. — Лёд уже тронулся, и на мосту стояла половина города.
— И ты, конечно, не мог уйти, пока не посмотрел всё до конца!
— Конечно, не мог, — засмеялся он. — Такое бывает только раз в году, и ты сама это знаешь.
Она ничего не ответила, но налила ему чаю и придвинула варенье. За окном темнело, и где-то далеко гудел поезд.""",
    fr_dialog="""« Tu viens avec nous ? » demanda Paul ; il avait déjà mis son manteau.
« Non , pas ce soir » , répondit-elle : « je dois finir ce livre avant demain . »
« Encore ce livre ! Tu le lis depuis trois semaines : est-il si long ? »
« Il est très long , et surtout très beau . » Paul haussa les épaules , prit son chapeau et sortit sans faire de bruit . Elle resta près de la fenêtre , relut la même page deux fois , puis ferma les yeux .""",
    zh_tech="""要安装这个软件包，请先运行 pip install numpy，然后在 Python 3.12 中导入它。如果系统提示找不到模块，通常是因为 PATH 环境变量没有设置好。可以用 which python 查看当前使用的是哪一个解释器。安装完成以后，建议新建一个虚拟环境（virtual environment），这样不同项目的依赖就不会互相影响。最后，运行 python -m pytest 检查一切是否正常。""",
    zh_poemprose="""秋天到了。
树叶黄了。
一片片叶子从树上落下来。
天空那么蓝，那么高。
一群大雁往南飞，一会儿排成个人字，一会儿排成个一字。
啊！秋天来了！
奶奶说，今年的柿子特别甜，要给城里的孙子留几个。
爷爷坐在门口编筐，手指又粗又慢，可是每一根柳条都听他的话。""",
    ja_tech="""このライブラリを使うには、まずPython 3.12をインストールしてください。次に、ターミナルを開いて pip install numpy と入力します。エラーが表示された場合は、PATHの設定を確認する必要があります。プロジェクトごとに仮想環境を作っておくと、依存関係の問題を避けることができます。最後に、テストを実行して、すべてが正しく動くことを確かめましょう。""",
    ko_news="""지난 3월 12일 서울에서 열린 회의에서 참가자 250여 명은 새로운 교통 계획에 대해 논의했다. 시는 2030년까지 버스 노선을 30% 늘리고, 자전거 도로 120km를 새로 만들 예정이라고 밝혔다. 일부 주민은 예산이 부족하다고 지적했지만, 대부분은 계획에 찬성했다. 시장은 "시민의 목소리를 듣고 천천히 바꾸어 나가겠다"고 말했다. 다음 회의는 6월에 열린다. 자세한 내용은 시청 누리집에서 볼 수 있다. 문의는 전화로도 받는다.""",
    de_amt="""Gemäß der Straßenverkehrszulassungsordnung müssen Kraftfahrzeughaftpflichtversicherungen nachgewiesen werden, bevor die Zulassungsstelle eine Betriebserlaubnis erteilt. Die Verwaltungsgebührenverordnung unterscheidet dabei zwischen Erstzulassungen und Wiederzulassungen. Wer seine Fahrzeugpapiere verloren hat, benötigt eine eidesstattliche Versicherung. Antragsformulare liegen im Eingangsbereich der Kreisverwaltung aus und können auch elektronisch eingereicht werden. Bearbeitungszeiten von mehreren Wochen sind derzeit leider nicht ungewöhnlich.""",
    fi_law="""Kansalaisaloitteesta säädetään perustuslaissa, ja sen käsittelyjärjestys määritellään eduskunnan työjärjestyksessä. Aloitteentekijöiden on kerättävä vähintään viisikymmentätuhatta kannatusilmoitusta kuuden kuukauden kuluessa. Väestörekisterikeskus tarkastaa ilmoitusten oikeellisuuden. Tämän jälkeen aloite toimitetaan eduskunnalle, joka ottaa sen käsiteltäväksi. Valiokunta kuulee asiantuntijoita ja antaa mietintönsä. Lopullisen päätöksen tekee täysistunto äänestyksellä. Hylätyn aloitteen voi tehdä uudelleen seuraavalla vaalikaudella.""",
    th_one="""การเดินทางด้วยรถไฟจากกรุงเทพฯไปเชียงใหม่ใช้เวลาประมาณสิบสองชั่วโมงแต่ผู้โดยสารหลายคนชอบเพราะได้เห็นวิวสองข้างทางและได้พูดคุยกับคนแปลกหน้าซึ่งมักจะกลายเป็นเพื่อนกันก่อนถึงสถานีปลายทาง ตอนกลางคืนพนักงานจะมาปูที่นอนให้และปิดไฟในตู้ เสียงล้อกระทบรางทำให้หลับง่ายกว่าที่คิด""",
    ta_news="""சென்னையில் நேற்று பெய்த கனமழையால் பல சாலைகளில் வெள்ளம் தேங்கியது. பேருந்துகள் தாமதமாக இயக்கப்பட்டன. பள்ளிகளுக்கு விடுமுறை அளிக்கப்பட்டது. மீட்புப் பணியாளர்கள் இரவு முழுவதும் பணியாற்றினர். இன்று மாலை மழை குறையும் என்று வானிலை ஆய்வு மையம் தெரிவித்துள்ளது. பொதுமக்கள் தேவையின்றி வெளியே வர வேண்டாம் என்று அதிகாரிகள் கேட்டுக்கொண்டனர். மின்சாரம் துண்டிக்கப்பட்ட பகுதிகளில் விரைவில் சரிசெய்யப்படும். மேலும் தகவல்களுக்கு மாவட்ட நிர்வாகத்தை அணுகலாம். உணவுப் பொட்டலங்கள் வழங்கப்படுகின்றன.""",
    ar_recipe="""لتحضير هذا الطبق نحتاج إلى كوبين من الأرز ونصف كيلو من الدجاج وبصلة كبيرة وملعقتين من الزيت. نقطع البصل ونقليه حتى يصبح لونه ذهبيًا، ثم نضيف الدجاج والبهارات ونتركه على نار هادئة لمدة ثلث ساعة. بعد ذلك نغسل الأرز جيدًا ونضيفه مع ثلاثة أكواب من الماء الساخن. نغطي القدر ونخفض النار حتى ينضج كل شيء. يقدم الطبق مع اللبن والسلطة.""",
    hi_hist="""यह किला सोलहवीं शताब्दी में बनाया गया था और इसकी दीवारें लाल पत्थर की हैं। राजा ने इसे नदी के किनारे इसलिए बनवाया कि शत्रु एक ही ओर से आ सके। आज यहाँ हर साल लाखों पर्यटक आते हैं। किले के भीतर एक संग्रहालय है जिसमें पुराने हथियार, सिक्के और चित्र रखे हुए हैं। शाम को प्रकाश और ध्वनि का कार्यक्रम होता है, जिसमें किले का पूरा इतिहास सुनाया जाता है।""",
    ja_novel="""「もう帰るの？」と彼女は聞いた。
「うん、明日が早いから。」
「そう……。気をつけてね。」
彼は何か言おうとしたが、言葉が見つからなかった。窓の外では、雨が静かに降りつづいていた。
「また来るよ。」
「本当に？」
「約束する。」
彼女は笑って、傘を一本わたした。それは、二人が初めて会った日に彼が忘れていった傘だった。""",
    el_list="""Για να φτιάξετε το ψωμί χρειάζεστε μισό κιλό αλεύρι, λίγη μαγιά, αλάτι και χλιαρό νερό. Ανακατεύετε τα υλικά και ζυμώνετε για δέκα λεπτά. Αφήνετε τη ζύμη να φουσκώσει σε ζεστό μέρος, σκεπασμένη με μια πετσέτα. Μετά από μία ώρα την πλάθετε και τη βάζετε στο ταψί. Ψήνετε για σαράντα λεπτά, μέχρι να ροδίσει η κόρα. Όταν κρυώσει, κόβεται πιο εύκολα.""",
)

# What is no text in any of these languages: a menu, keywords, one sentence again and again, and a table
MENUS = dict(
    de='Startseite\nÜber uns\nKontakt\nImpressum\nAnmelden\nWarenkorb\nSuche',
    fr='Accueil\nQui sommes-nous\nContact\nConnexion\nPanier\nRecherche',
    ru='Главная\nО нас\nКонтакты\nВойти\nКорзина\nПоиск',
    ar='الرئيسية\nمن نحن\nاتصل بنا\nتسجيل الدخول\nالسلة',
    zh='首页\n关于我们\n联系我们\n登录\n购物车\n搜索', ja='ホーム\n会社概要\nお問い合わせ\nログイン\nカート', th='หน้าแรก\nเกี่ยวกับเรา\nติดต่อ\nเข้าสู่ระบบ',
    ko='홈\n회사 소개\n문의하기\n로그인\n장바구니', hi='मुख्य पृष्ठ\nहमारे बारे में\nसंपर्क\nलॉग इन')
KEYWORDS = dict(
    en='shoes nike adidas puma cheap sale discount buy online store outlet women men kids running boots sandals sneakers leather '
       'black white red size free shipping jackets shirts jeans socks hats gloves scarves belts bags wallets watches rings',
    de='schuhe hosen hemden jacken mäntel günstig kaufen versand kostenlos damen herren kinder größe rot schwarz weiß leder wolle '
       'baumwolle angebot rabatt gutschein sandalen stiefel turnschuhe gürtel taschen uhren ringe ketten mützen schals handschuhe',
    es='zapatos camisas pantalones baratos comprar online envío gratis mujer hombre niños rebajas ofertas descuento tienda moda negro '
       'blanco rojo cuero lana bolsos relojes anillos cinturones gorras bufandas guantes botas sandalias zapatillas abrigos faldas',
    ru='обувь куртки дешево купить москва интернет магазин скидки распродажа женская мужская детская доставка бесплатно цена каталог '
       'ботинки сапоги сандалии кроссовки ремни сумки часы кольца шапки шарфы перчатки юбки платья рубашки джинсы носки кожа шерсть',
    zh='鞋子 外套 衬衫 牛仔裤 袜子 帽子 手套 围巾 腰带 钱包 手表 戒指 项链 耳环 凉鞋 靴子 运动鞋 背包 雨伞 眼镜 女装 男装 童装 内衣 睡衣 泳装 毛衣 卫衣 西装 领带 折扣 促销 包邮 清仓 特价 新款 正品 批发 零售 品牌',
    zh2='北京租房、上海租房、广州租房、深圳租房、杭州租房、成都租房、武汉租房、南京租房、天津租房、西安租房、重庆租房、苏州租房、青岛租房、大连租房、厦门租房、宁波租房、长沙租房、郑州租房、济南租房、合肥租房',
    ja='靴 帽子 時計 指輪 財布 鞄 傘 眼鏡 手袋 水着 下着 靴下 上着 毛布 枕 椅子 机 本棚 食器 包丁 鍋 皿 茶碗 急須 花瓶 照明 電球 電池 充電器 携帯電話 冷蔵庫 洗濯機 掃除機 扇風機 加湿器 送料無料 激安 通販 新品 中古',
    ja2='ワンピース スカート ジャケット コート セーター パーカー デニム ブーツ サンダル スニーカー バッグ リュック ネックレス ピアス リング ブレスレット ベルト マフラー ストール ソックス レディース メンズ キッズ セール クーポン ポイント ランキング レビュー',
    th='รองเท้า เสื้อ กางเกง กระโปรง หมวก ถุงเท้า กระเป๋า นาฬิกา แหวน สร้อยคอ ต่างหู เข็มขัด ผ้าพันคอ ถุงมือ แว่นตา ร่ม ชุดว่ายน้ำ ชุดนอน ชุดชั้นใน เครื่องประดับ ส่วนลด โปรโมชั่น ส่งฟรี ราคาถูก สินค้าใหม่',
    ar='أحذية قمصان بناطيل جوارب قبعات قفازات أوشحة أحزمة محافظ ساعات خواتم قلائد أقراط صنادل حقائب مظلات نظارات ملابس نسائية رجالية أطفال تخفيضات خصومات شحن مجاني عروض ماركات جديد رخيص تسوق اونلاين متجر جلد صوف قطن حرير أسود أبيض أحمر أزرق',
    hi='जूते कमीज पतलून मोज़े टोपी दस्ताने दुपट्टा बेल्ट बटुआ घड़ी अंगूठी हार झुमके चप्पल बैग छाता चश्मा साड़ी कुर्ता लहंगा शर्ट जींस छूट मुफ्त डिलीवरी सस्ता ऑनलाइन खरीदें दुकान ब्रांड नया महिला पुरुष बच्चे चमड़ा ऊन सूती रेशम काला सफेद लाल नीला',
    tr='ayakkabı gömlek pantolon çorap şapka eldiven atkı kemer cüzdan saat yüzük kolye küpe sandalet çanta şemsiye gözlük kadın erkek çocuk indirim kampanya ücretsiz kargo ucuz marka yeni sezon deri yün pamuk ipek siyah beyaz kırmızı mavi yeşil sarı mont ceket kazak elbise etek bluz tişört',
    fr='chaussures chemises pantalons chaussettes chapeaux gants écharpes ceintures portefeuilles montres bagues colliers boucles sandales sacs parapluies lunettes femme homme enfant soldes promotion livraison gratuite marque nouveau cuir laine coton soie noir blanc rouge bleu vert jaune manteau veste pull robe jupe chemisier bottes baskets',
    ko='신발 가방 모자 장갑 목도리 지갑 벨트 시계 반지 목걸이 귀걸이 샌들 부츠 운동화 배낭 우산 안경 여성 남성 아동 속옷 잠옷 수영복 스웨터 셔츠 청바지 '
       '양말 할인 무료배송 당일발송 신상품 인기상품 이벤트 쿠폰 리뷰 원피스 티셔츠 바지 치마 자켓 코트 니트 가디건 세일 정품 도매 소매 브랜드',
    ko2='컴퓨터 노트북 모니터 키보드 마우스 스피커 헤드폰 이어폰 충전기 케이블 배터리 메모리 하드디스크 프린터 스캐너 태블릿 휴대폰 카메라 렌즈 삼각대 '
        '냉장고 세탁기 청소기 에어컨 선풍기 가습기 공기청정기 전자레인지 밥솥 믹서기 다리미 최저가 특가 서울 아파트 매매 전세 월세 부동산 분양',
    he='נעליים חולצות מכנסיים גרביים כובעים כפפות צעיפים חגורות ארנקים שעונים טבעות שרשראות עגילים סנדלים תיקים מטריות משקפיים נשים גברים ילדים '
       'מבצע הנחה משלוח חינם זול קנייה אונליין חנות מותג חדש עור צמר כותנה משי שחור לבן אדום כחול ירוק צהוב מעיל סוודר שמלה חצאית מגפיים',
    ta='சட்டை காலணி பை தொப்பி கையுறை கடிகாரம் மோதிரம் வளையல் காதணி கண்ணாடி குடை புடவை வேட்டி செருப்பு பெல்ட் பணப்பை பெண்கள் ஆண்கள் குழந்தைகள் '
       'தள்ளுபடி இலவச விநியோகம் மலிவு விலை ஆன்லைன் கடை பிராண்ட் புதிய தோல் பட்டு பருத்தி கருப்பு வெள்ளை சிவப்பு நீலம் பச்சை மஞ்சள் தங்கம் வெள்ளி',
    nl='schoenen overhemden broeken sokken hoeden handschoenen sjaals riemen portemonnees horloges ringen kettingen oorbellen sandalen tassen paraplu '
       'zonnebril dames heren kinderen korting aanbieding gratis verzending goedkoop kopen winkel merk nieuw leer wol katoen zijde zwart wit rood blauw')
